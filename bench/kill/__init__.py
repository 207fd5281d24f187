"""The kill matrix: named points between the steps of the tick and of the cashier, and a process killed at each."""
