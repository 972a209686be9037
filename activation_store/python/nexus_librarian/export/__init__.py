"""Writes a store's samples as files that other people's trainers read.

    python3 -m nexus_librarian.export acts --to speculators --out data      (librarian export ...)

One sample is in memory at a time. A file appears whole, by rename, and OUT/export.json says what the
folder is of, so that the same command continues after a kill and any other is refused.
"""
