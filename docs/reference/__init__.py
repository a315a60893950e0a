"""The references, written from the code: ``python3 dev.py references``.

``commands`` writes cli.md from the click application, ``names`` writes api.md from what can be imported, ``signatures``
says how it is called, ``markdown`` has the pieces of a page.
"""
