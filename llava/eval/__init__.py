"""Commands that answer questions and score answers; each joins the model's side with the benchmarks'."""
