"""Words that stand behind a number without changing its value."""

_UNITS = frozenset(
    """pct mm cm dm km nm ft in yd mi mph kph kmph km kg mg lb lbs oz ml mL hr hrs min mins sec secs ms sq cu deg degree degrees
    rad radians meter meters metre metres foot feet inch inches yard yards mile miles unit units square cubic cent cents
    dollar dollars pound pounds euro euros gram grams kilogram kilograms kilometer kilometers centimeter centimeters
    millimeter millimeters liter liters litre litres gallon gallons ounce ounces second seconds minute minutes hour hours
    day days week weeks month months year years percent per time times way ways ton tons Hz kHz cal kcal bpm usd USD gb GB
    mb MB kb KB kw kW""".split()
)  # fmt: skip
_NOT_UNITS = frozenset(
    "is are not or and if then because since so but equals equal wait than less more least most at when where for mod yes no "
    "true false none with to from plus minus over by squared cubed".split()
)
_SHORT_WORDS = frozenset(
    "is are the to of in at by so we if no yes not and or on as an be he it up was has had can get all one two ten six odd any "
    "but for its per add sum let set see new old now our out day she his her him you who why how may too use way did got do go "
    "me my us am none even true dne nan na ok".split()
)
_LETTERS = frozenset("msghLltJNWVAKCF")


def is_unit(word: str) -> bool:
    """Whether a word behind a number may be dropped: a known unit, or any long word that is no logical or verbal one."""
    return word in _UNITS or (len(word) > 3 and word.isalpha() and word.lower() not in _NOT_UNITS)


def is_unit_letter(word: str) -> bool:
    """Whether a single letter, set off by a space at the very end, is read as a unit."""
    return word in _LETTERS


def is_short_word(word: str) -> bool:
    """Whether a word of two or three letters is English rather than a product of variables."""
    return word.lower() in _SHORT_WORDS
