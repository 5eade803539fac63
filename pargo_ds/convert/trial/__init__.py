"""The trial of export on a tiny copy of a run's model, before the run trains."""
