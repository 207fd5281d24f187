"""The way in: what every HTTP door of ours does alike. Exact JSON, problem details, sizes, settings. No domain word."""
