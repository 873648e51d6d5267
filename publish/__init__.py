"""What is published: the pages in both languages, and a release.

pages.py     the pages, and the tables in them that are made from data: `python3 dev.py docs`
messages.py  every sentence id with what it means and what to do: docs/messages.json → the tables of docs/messages.md
encoders.py  the tables of text encoders, of forms of weights, of times: from the code and docs/numbers.json
release.py   version, changelog, tag and archive: `python3 dev.py release`
"""
