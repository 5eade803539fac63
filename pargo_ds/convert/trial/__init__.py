"""Everything that export needs, tried on a tiny copy of a run before the run trains."""
