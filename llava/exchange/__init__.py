"""Write a model as transformers' `LlavaForConditionalGeneration` folder, and read such a folder back.

`names` maps weights and config fields both ways, `tokenizer_file` and `chat_template` make what transformers
needs to produce the original's ids, `export`, `import_folder`, `merge` and `push` are the commands.
"""
