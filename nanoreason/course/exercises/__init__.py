"""One module an exercise; `sheet.py` says what it holds."""
