"""What a module of a model is, under what training, peft and parametrizations put around it."""
