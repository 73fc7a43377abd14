"""A small office of apps for agents: mail, calendar, files, payments and notes.

| file | job |
|---|---|
| `world` | the state of one office, and what holds for every app: pages, sign-in, rate limits |
| `tools` | the apps' calls as plain functions; they act on the office that is open where they are called |
| `tasks` | the seeded generator of tasks, and the check of the end state |
| `goals` | the share of tasks and of scenarios that were completed |
| `apprentice`, `advice` | an offline model that works with any tools, has bad habits and follows advice |

Nothing in the office knows which model works there, and the apprentice knows nothing of the office.
What a caller did wrong it learns from the answers of the apps and from whether the end state fits the task; the
expected end state is told to nobody.
"""
