"""What a run is made of: rows, folders, locks, processes, provenance, logs; no stage and no model is known here."""
