"""
Every move of a budget: reserve, spend, release, refund. Integers; the balance is checked after each.
"""

from dataclasses import replace

from agent.core.model import Budget


def opened(total_atomic: int) -> Budget:
    """Return a budget of which all is available."""
    return checked(Budget(total_atomic=total_atomic, available_atomic=total_atomic))


def checked(budget: Budget) -> Budget:
    """Return `budget`. Raises AssertionError where it does not balance or a part is negative."""
    parts = (budget.available_atomic, budget.reserved_atomic, budget.spent_atomic)
    if sum(parts) != budget.total_atomic or min(parts) < 0:
        raise AssertionError(f"the budget does not balance: {budget}")
    return budget


def reserved(budget: Budget, amount_atomic: int) -> Budget:
    """Return `budget` with `amount_atomic` promised to a payment."""
    return checked(
        replace(
            budget,
            available_atomic=budget.available_atomic - amount_atomic,
            reserved_atomic=budget.reserved_atomic + amount_atomic,
        )
    )


def spent(budget: Budget, amount_atomic: int) -> Budget:
    """Return `budget` with a reservation turned into money gone."""
    return checked(
        replace(
            budget,
            reserved_atomic=budget.reserved_atomic - amount_atomic,
            spent_atomic=budget.spent_atomic + amount_atomic,
        )
    )


def released(budget: Budget, amount_atomic: int) -> Budget:
    """Return `budget` with a reservation given back: the payment is proven never to have been made."""
    return reserved(budget, -amount_atomic)


def refunded(budget: Budget, amount_atomic: int) -> Budget:
    """Return `budget` with `amount_atomic` of what was spent come back."""
    return checked(
        replace(
            budget,
            spent_atomic=budget.spent_atomic - amount_atomic,
            available_atomic=budget.available_atomic + amount_atomic,
        )
    )
