"""How a model is shrunk, what it then takes, and which way of it fits a machine. Everything here is pure."""
