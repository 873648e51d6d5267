"""How well each choice does on the weights of the user: its output beside that of the same weights in float32, for real prompts.

apart.py      measures in a process of its own, which gives way to pictures
beside.py     runs the encoders beside each other, block by block
kept.py       what was measured, on disk, and what the recommendation takes of it
measuring.py  the one way to measure a source
page.py       the result as a page of HTML
prompts.py    the prompts, and the tokens that they are
result.py     what was found, as text and JSON
running.py    measures what is not kept yet, a few prompts at a time
"""
