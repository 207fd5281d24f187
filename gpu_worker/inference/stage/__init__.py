"""Every other stage: it checks what comes, computes it, and sends it on or answers."""
