"""Convert the data engine's records to training data. Text only: no torch, and no image is opened.

`records` reads engine records, `formats` writes them as questions and answers, `convert` makes samples, `mix`
appends them to base data; `pipeline` and `llava engine` join these steps. `loop` steers the
rounds of generating records, `lineage` says what a round trains on, and `results` what it gained.
"""
