"""The time that the plain code of dspy_ace takes, beside a straightforward version and a lower bound."""
