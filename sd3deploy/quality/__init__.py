"""How well each choice does on the weights of the user: its output beside that of the same weights in float32, for real prompts.

apart.py      measures in a process of its own, which gives way to pictures
beside.py     runs the encoders beside each other, block by block
gallery.py    the pictures as a part of the page
kept.py       what was measured, on disk, and what the recommendation takes of it
likeness.py   how like two pictures are
measuring.py  the one way to measure a source
page.py       the result as a page of HTML
painting.py   makes pictures of the model with each of them
pictures.py   those pictures and their numbers, as text and JSON
prompts.py    the prompts, and the tokens that they are
result.py     what was found, as text and JSON
running.py    measures what is not kept yet, a few prompts at a time
"""
