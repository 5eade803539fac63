"""Training: assemble the model, freeze its parts, run the loop on DeepSpeed, measure and report."""
