"""A small office with rules of its own, for agents: mail, calendar, notes, approvals and payments.

| file | job |
|---|---|
| `rules` | the rules of the house and their exceptions |
| `world` | the state of one office, and the log of what it rejected |
| `tools` | the apps' calls as plain functions; they act on the office that is open where they are called |
| `tasks` | the seeded generator of tasks, and the check of the end state |
| `goals` | the share of tasks and of scenarios that were completed |
| `apprentice`, `advice` | an offline model that works with any tools, knows no house rules and follows advice |

The rules stand in no prompt. Answers of the apps tell facts from which they can be concluded, and what was rejected
stays in the day's log, where it spoils the task. So a rule must be known beforehand. Nothing in the office knows which
model works there, and the apprentice knows nothing of the office.
"""
