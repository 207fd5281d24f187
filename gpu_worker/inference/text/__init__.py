"""Text in, text out: what stands between the HTTP doors and whatever generates tokens."""
