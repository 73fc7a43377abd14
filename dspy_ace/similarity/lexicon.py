"""What single English words are: stems, synonyms, opposites, negations, numbers, words that carry little.

Tables and the look-ups `stem` and `canon`. They are built on import: whoever needs them imports this on first use.
"""

from __future__ import annotations

import re
from functools import lru_cache


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _grouped(table: str) -> dict[str, str]:
    """`"in: in within | on: on onto"` → each word to the name of its group."""
    groups = [entry.split(":") for entry in table.split("|")]
    return {word: name.strip() for name, words in groups for word in words.split()}


_IRREGULAR = _grouped(
    "send: sent | find: found | make: made | get: got | take: took taken | choose: chose chosen |"
    "write: wrote written | pay: paid |"
    "buy: bought | sell: sold | keep: kept | give: gave given | show: shown | build: built | run: ran |"
    "begin: began begun | come: came | go: went gone | say: said | tell: told | bring: brought | lose: lost |"
    "see: saw seen | know: knew known | draw: drawn | spend: spent | mean: meant | hold: held | fall: fell fallen |"
    "rise: rose risen | color: colour | behavior: behaviour | favor: favour | center: centre | person: people |"
    "child: children | id: ids | api: apis | index: indices indexes | criterion: criteria | analysis: analyses"
)


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """A light stem of a lower-case word: plural, -ed, -ing and a last e go; nothing else does."""
    word = _IRREGULAR.get(word, word)
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-3] + "y" if word.endswith("ies") and len(word) > 4 else word[:-1]
        word = re.sub(r"(sse|xe|che|she|zze)$", lambda end: end[0][:-1], word)
        word = _IRREGULAR.get(word, word)
    base = re.sub(r"(?<!e)ed$|ing$", "", word)
    if base != word and len(base) > 1 and re.search("[aeiouy]", base):
        if len(base) > 3 and base[-1] == base[-2] and base[-1] not in "lsz":
            base = base[:-1]
        elif re.fullmatch(r"[^aeiouy]{0,3}[aeiouy][^aeiouywx]", base):
            base += "e"  # rating -> rate
        word = base
    word = re.sub(r"is(e|ation)?$", r"iz\1", word) if len(word) > 6 else word
    if len(word) > 5 and word.endswith("ll"):
        word = word[:-1]
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


_SYNONYMS = {
    stem(word): name
    for word, name in _grouped(
        "check: check verify confirm validate ensure | use: use utilize | get: get fetch retrieve obtain |"
        "find: find locate | identify: identify determine | choose: choose select pick | remove: remove delete |"
        "buy: buy purchase | start: start begin | finish: finish complete end | compute: compute calculate |"
        "fast: fast quick rapid | big: big large | small: small little | help: help assist |"
        "contain: contain comprise |"
        "change: change modify edit alter | show: show display | reply: reply respond | error: error mistake |"
        "wrong: wrong incorrect | exact: exact precise | enough: enough sufficient | same: same identical |"
        "whole: whole entire | because: because since | keep: keep retain preserve maintain | allow: allow permit |"
        "build: build construct | reduce: reduce minimize lessen | improve: improve enhance | avoid: avoid prevent |"
        "given: given provided specified | redundant: redundant unnecessary needless superfluous | need: need require |"
        "immediately: immediately instantly | above: above exceed surpass | almost: almost nearly |"
        "often: often frequently | many: many numerous | latest: latest newest | try: try attempt |"
        "individually: individually separately"
    ).items()
}


def canon(word: str) -> str:
    """The key of a lower-case word: its stem, or the name of its synonyms."""
    return _SYNONYMS.get(stem(word), stem(word))


def _canons(words: str) -> frozenset[str]:
    return frozenset(map(canon, words.split()))


def _paired(table: str) -> dict[str, str]:
    """`"buy sell|open close"` → each word's key to that of the other; of several others the last."""
    pairs = [pair.split() for pair in table.split("|")]
    return {stem(one): stem(other) for pair in pairs for one, other in (pair, pair[::-1])}


DROP = _listed(  # articles, pronouns, auxiliaries: they make no token
    "a an the is are was were be been being am has have had having do does did it its they them i you we me this that "
    "these those which who whom whose there here of so very quite really as such eg ie etc then thus therefore hence "
    "however instead too also please well itself themselves yourself whether let"
)
SOFT = _grouped(  # words of grammar: left out is no difference; one in place of another is, across groups
    "in: in within inside into across | on: on onto | at: at | for: for | to: to towards toward | with: with via |"
    "and: and plus both | or: or either | if: if when whenever where while | but: but yet although though |"
    "than: than | about: about regarding concerning | he: he him his | she: she her hers | my: my mine | our: our us |"
    "your: your | their: their | must: must shall need needs needed | should: should ought | can: can could |"
    "any: any | all: all every each"
)
NEGATIONS = _grouped(  # one of these on one side alone is a difference, as with the next
    "not: not never | no: no none nobody nothing | nor: nor neither | without: without | insteadof: insteadof |"
    "except: except excluding exclude excludes | unless: unless | non: non | hardly: hardly rarely seldom"
)
RESTRICTIONS = _grouped(
    "only: only solely exclusively | may: may might optionally optional | until: until till | even: even |"
    "will: will would"
)
PHRASES = {  # several words → those that stand for them; none for a phrase that says nothing
    tuple(phrase.split()): tuple(target.split())
    for target, phrases in {
        "insteadof": "instead of|rather than", "before": "prior to", "atleast": "at least|no less than|no fewer than",
        "atmost": "at most|no more than|up to", "above": "more than|greater than|higher than|larger than",
        "below": "less than|fewer than|lower than|smaller than", "to": "in order to", "and": "as well as",
        "check": "make sure|making sure|makes sure", "with": "together with|along with", "if": "in case",
        "except": "other than|apart from|except for", "unless": "except when|except if", "%": "per cent|percent",
        "not": "not ever|never ever|refrain from|cannot|can not", "latest": "most recent", "each": "each of",
        "immediately": "at once|right away", "because": "due to|because of", "all": "all of", "any": "any of",
        "must": "has to|have to|needs to|need to", "in": "within the context of|in the context of",
        "according": "based on|tailored to|according to|depending on|in accordance with|in line with",
        "": "as well|such as|for example|for instance|if available|when available|where available|in addition|"
            "the importance of|emphasize the importance of|stress the importance of|recognize the importance of|"
            "understand the importance of|stress the need to|the necessity of|be mindful of|be aware of|take care to|"
            "take note of|pay attention to|keep in mind|keep in mind that|note that|implement a system to|"
            "implement a process to|establish a process to|the one|one of",
    }.items()
    for phrase in phrases.split("|")
}  # fmt: skip
OPENINGS = frozenset(phrase[0] for phrase in PHRASES)  # the first words of phrases
BOUNDS = {"over": "above", "under": "below"}  # before a number
WEAK = _canons(  # padding: said by one text alone it is no difference
    "always carefully properly proper correctly correct appropriate appropriately respective specifically explicitly "
    "directly simply just successfully accurately thoroughly systematically efficiently effectively gracefully "
    "significantly actually certainly consistently already especially particularly importantly clearly reliably "
    "overall check use implement perform do remember note make sure"
)
SLACK = _canons(  # words that carry little in a long text, and much in a short one
    "relevant specific accurate efficient effective various actual given provided necessary comprehensive robust "
    "reliable clear corresponding based api task operation workflow approach method strategy way thing case consider "
    "rely build prefer process resort assume default examine conclude proceed focus involve calculation assessment "
    "analysis optimization processing handling management scenario purpose guide example requirement"
)
OPPOSITES = _paired(  # a key to the key of its opposite
    "always never|before after|first last|first second|min max|minimum maximum|ascending descending|"
    "include exclude|increase decrease|above below|greater less|more less|more fewer|buy sell|enable disable|"
    "true false|left right|higher lower|high low|older newer|oldest newest|sender recipient|sender receiver|"
    "most least|accept reject|approve reject|approve deny|allow deny|open close|start finish|start stop|"
    "add remove|add subtract|multiply divide|debit credit|asset liability|income expense|gross net|"
    "lender borrower|buyer seller|employer employee|input output|import export|push pull|early late|"
    "earlier later|long short|hot cold|full empty|full partial|public private|internal external|"
    "inbound outbound|upper lower|top bottom|odd even|positive negative|present absent|read write|encode decode|"
    "encrypt decrypt|lock unlock|follow unfollow|send receive|win lose|horizontal vertical|row column|"
    "daily weekly|weekly monthly|monthly yearly|million billion|thousand million|source target|parent child"
)
NUMBERS = _grouped(
    "0: zero | 1: one | 2: two | 3: three | 4: four | 5: five | 6: six | 7: seven | 8: eight | 9: nine | 10: ten |"
    "11: eleven | 12: twelve | 13: thirteen | 14: fourteen | 15: fifteen | 16: sixteen | 17: seventeen |"
    "18: eighteen | 19: nineteen | 20: twenty | 30: thirty | 40: forty | 50: fifty | 60: sixty | 70: seventy |"
    "80: eighty | 90: ninety"
)
ORDINALS = _grouped(
    "first: 1st | second: 2nd | third: 3rd | fourth: 4th | fifth: 5th | sixth: 6th | seventh: 7th | eighth: 8th |"
    "ninth: 9th | tenth: 10th"
)
FRONTED = _listed(  # words that open a clause which may stand before or behind its main clause
    "before after when whenever if while once until unless because since for in to with during on at by where upon"
)
REASON_VERBS = _canons(  # what an instruction is good for: "to avoid …", "This ensures …", ", reducing …"
    "ensure prevent avoid reduce minimize improve help guarantee optimize account eliminate save make allow increase "
    "provide preserve promote foster"
)
TOO_MUCH = _listed("increase keep allow make provide")  # "to …" of these is part of what is asked
WORK = _listed("then and but unless except if")  # after a pause: back from a reason to what is asked
STRESSED = _listed("important crucial essential critical vital especially")  # "It is crucial for …"
PRAISE = _canons(  # within a reason as weak as WEAK
    "improve ensure guarantee help optimize promote foster relevant specific "
    "important crucial essential critical vital accuracy consistency clarity correctness reliability efficiency "
    "completeness quality compliance precision relevance coherence readability robustness accurate consistent correct "
    "reliable compliant"
)
QUALITIES = _listed(  # "for …" or "to check …" of these opens a reason
    "accuracy consistency clarity correctness reliability efficiency completeness quality compliance precision "
    "relevance coherence readability robustness accurate consistent correct reliable compliant"
)
SIGNS = {"×": "*", "≤": "<=", "≥": ">=", "≠": "!=", "→": "->", "÷": "/"}
CAPITALS = _listed("us it who am me")  # words that in capitals are names
ACRONYMS = _listed("api apis id ids")  # capitals that are no names
PARTICIPLE = re.compile(r"ed$|^(sent|kept|made|given|taken|written|paid|shown)$")
