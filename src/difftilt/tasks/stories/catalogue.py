"""What the stories are about: six topics of four causes each, two of which end well.

``<name>``, ``<he>``, ``<his>`` and ``<thing>`` stand for the story's hero and object; ``{a|b}`` for
either word. Every expansion of a template is a sentence, and all sentences of a list are equally
likely. No sentence states two causes, and none is longer than ``SLOT`` words.
"""

from dataclasses import dataclass

SLOT = 9
"""Words of a sentence at most."""

HEROES = {
    "adam": ("he", "his"),
    "ben": ("he", "his"),
    "carl": ("he", "his"),
    "david": ("he", "his"),
    "anna": ("she", "her"),
    "beth": ("she", "her"),
    "clara": ("she", "her"),
    "dora": ("she", "her"),
}
"""Names, with the pronouns of each."""

MOODS = {
    "good": ("<name> {felt|was|seemed} {proud|happy|glad} {all day|that night|for a week}",),
    "bad": ("<name> {felt|was|seemed} {sad|upset|sorry} {all day|that night|for a week}",),
}
"""Endings that any cause of a mood may have."""


@dataclass(frozen=True)
class Cause:
    """Why a story ends as it does.

    Arguments:
        mood: a key of ``MOODS``.
        middles: templates of the fourth sentence, which states the cause.
        endings: templates of the fifth, which follows from it.
    """

    mood: str
    middles: tuple[str, ...]
    endings: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """One kind of story.

    Arguments:
        things: the objects.
        openings: templates of the first sentence.
        preparations: templates of the second.
        hints: templates of the third: each tells which causes are likely.
        causes: four; the first hint favours the first ones, the second hint the last ones.
    """

    things: tuple[str, ...]
    openings: tuple[str, ...]
    preparations: tuple[str, ...]
    hints: tuple[tuple[str, ...], tuple[str, ...]]
    causes: tuple[Cause, Cause, Cause, Cause]


TOPICS = {
    "baking": Topic(
        things=("cake", "pie", "pizza", "loaf"),
        openings=("<name> {wanted|decided|planned} to {bake|make} a <thing>",),
        preparations=("<he> {bought|found|borrowed} {flour|butter|milk} for the <thing>",),
        hints=(
            ("<he> read <his> {new|old|long} recipe {twice|slowly|aloud}",),
            ("<he> was {tired|late|busy} and {hurried|yawned} a lot",),
        ),
        causes=(
            Cause(
                "good",
                ("<he> {set|checked|watched} the timer {very|quite} {carefully|often}",),
                ("the <thing> was {golden|warm|perfect} and {everyone|grandma} ate it",),
            ),
            Cause(
                "good",
                ("<his> {mother|uncle|friend} {came|offered} to help with the <thing>",),
                ("they {shared|enjoyed|finished} the <thing> {together|side by side}",),
            ),
            Cause(
                "bad",
                ("<he> {forgot|left} the <thing> in the {hot|open|big} oven",),
                ("the <thing> {burned|turned} black and smoke {filled|covered} the kitchen",),
            ),
            Cause(
                "bad",
                ("<he> {used|added|poured} {salt|pepper} instead of sugar {again|today|somehow}",),
                ("the <thing> tasted {awful|terrible|strange} and {nobody|everyone} {left|spoke}",),
            ),
        ),
    ),
    "garden": Topic(
        things=("roses", "beans", "tomatoes", "tulips"),
        openings=("<name> {planted|sowed|grew} <thing> in the {garden|yard}",),
        preparations=("<he> {dug|cleared|marked} a {small|long|wide} row with a spade",),
        hints=(
            ("the {spring|month|weather} was {mild|gentle|sunny}",),
            ("the {spring|month|weather} was {harsh|rough|wild}",),
        ),
        causes=(
            Cause(
                "good",
                ("<he> watered the <thing> every {morning|evening|night} {in person|with love}",),
                ("the <thing> grew {tall|strong|green} and {healthy|thick}",),
            ),
            Cause(
                "good",
                ("<he> built a {tall|wooden|sturdy} fence {around|near} the <thing>",),
                ("the {rabbits|deer} {stayed|kept} {away|outside} and the <thing> {won|lived}",),
            ),
            Cause(
                "bad",
                ("{hungry|wild|two} {goats|rabbits} {jumped|sneaked} into the garden at night",),
                ("only {stems|roots|crumbs} of the <thing> were left {behind|there}",),
            ),
            Cause(
                "bad",
                ("a {sudden|late|hard} frost {came|struck} {in may|one night|before dawn}",),
                ("the <thing> {froze|withered} and turned {brown|gray|limp}",),
            ),
        ),
    ),
    "race": Topic(
        things=("marathon", "relay", "sprint", "race"),
        openings=("<name> {entered|joined} the {city|school|summer} <thing>",),
        preparations=("<he> {packed|cleaned|tied} <his> {shoes|shorts|laces} for the <thing>",),
        hints=(
            ("<his> {coach|team|sister} {trusted|cheered|praised} <him>",),
            ("<his> {coach|team|sister} {doubted|ignored|scolded} <him>",),
        ),
        causes=(
            Cause(
                "good",
                ("<he> trained {hard|daily} on the {hills|track|beach} {until|before} {may|dark}",),
                ("<he> {crossed|reached} the line {first|ahead} and {won|got} a {medal|trophy}",),
            ),
            Cause(
                "good",
                ("<he> {shared|gave} <his> water with a {weak|dizzy|thirsty} runner",),
                ("the {runner|stranger} {thanked|hugged} <him> and became a {friend|pal}",),
            ),
            Cause(
                "bad",
                ("<he> {twisted|hurt|sprained} <his> {ankle|knee} on a {rock|step|root}",),
                ("a {doctor|nurse} {wrapped|treated} <his> leg with a {bandage|splint}",),
            ),
            Cause(
                "bad",
                ("<he> {took|followed} a wrong turn {near|past} the {river|bridge|park}",),
                ("<he> was lost for {hours|miles} and {finished|arrived} last",),
            ),
        ),
    ),
    "fishing": Topic(
        things=("trout", "salmon", "bass", "pike"),
        openings=("<name> {went|drove|walked} to the lake to catch a <thing>",),
        preparations=("<he> {brought|carried|rented} a {rod|boat|net} and some {bait|worms}",),
        hints=(
            ("the {water|lake|air} was {calm|clear|still}",),
            ("the {sky|wind|horizon} looked {dark|angry|stormy}",),
        ),
        causes=(
            Cause(
                "good",
                ("<he> {waited|sat} {quietly|patiently} {for hours|until noon|in silence}",),
                ("a {huge|fat|heavy} <thing> {bit|swallowed} the hook {at last|finally}",),
            ),
            Cause(
                "good",
                ("an old fisherman {showed|told} <him> a {secret|shady|deep} {spot|bay}",),
                ("there <he> {caught|landed} {three|four|five} <thing> in {an hour|a row}",),
            ),
            Cause(
                "bad",
                ("a {storm|gale} {rolled|blew} in {quickly|fast|suddenly} from the west",),
                ("<he> {rowed|ran} home {soaked|wet|shivering} without a <thing>",),
            ),
            Cause(
                "bad",
                ("<he> {dropped|lost|broke} <his> {only|best|favorite} {line|reel} in the reeds",),
                ("<he> could only {watch|stare} as {others|people} {caught|cooked} <thing>",),
            ),
        ),
    ),
    "pet": Topic(
        things=("puppy", "kitten", "parrot", "pony"),
        openings=("<name> {adopted|received|got} a {little|young|shy} <thing>",),
        preparations=("<he> {prepared|made|bought} a {soft|cozy|clean} bed for the <thing>",),
        hints=(
            ("the <thing> {listened|stayed} {calmly|politely} {indoors|nearby}",),
            ("the <thing> {chewed|kicked} {everything|things} {indoors|nearby}",),
        ),
        causes=(
            Cause(
                "good",
                ("<he> taught the <thing> a {funny|clever|simple} trick with {treats|apples}",),
                ("the <thing> {performed|danced} for the {neighbors|class|guests}",),
            ),
            Cause(
                "good",
                ("the <thing> {noticed|heard} a {thief|burglar} {outside|upstairs|downstairs}",),
                ("the police {arrested|caught} the man and {praised|rewarded} the <thing>",),
            ),
            Cause(
                "bad",
                ("<he> left the {gate|door|window} open {by mistake|last night|all afternoon}",),
                ("<he> {searched|called} {everywhere|for days} but the <thing> was gone",),
            ),
            Cause(
                "bad",
                ("the <thing> ate {some|bad|spoiled} {chocolate|onions|grapes} {again|yesterday}",),
                ("the vet {kept|treated} the sick <thing> {overnight|until friday}",),
            ),
        ),
    ),
    "trip": Topic(
        things=("paris", "rome", "london", "berlin"),
        openings=("<name> {dreamed|thought} of a {trip|journey|holiday} to <thing>",),
        preparations=("<he> {bought|booked|ordered} a {cheap|night|morning} ticket to <thing>",),
        hints=(
            ("<he> {wrote|printed} a {short|neat|good} list for <his> bag",),
            ("<he> {threw|stuffed} clothes in <his> {small|messy|torn} bag",),
        ),
        causes=(
            Cause(
                "good",
                ("<he> {learned|practiced} {words|phrases|songs} in the {local|right} language",),
                ("<he> {talked|chatted|joked} with {locals|waiters} {easily|a lot} in <thing>",),
            ),
            Cause(
                "good",
                ("<his> {cousin|aunt} in <thing> {offered|lent} <him> a {room|couch|flat}",),
                ("<he> {stayed|slept} for {free|nothing} and {saved|kept} <his> money",),
            ),
            Cause(
                "bad",
                ("<his> {alarm|clock|phone} did not {ring|work} {on monday|that morning}",),
                ("the {train|plane} to <thing> {left|departed} without <him>",),
            ),
            Cause(
                "bad",
                ("a {robber|thief} {stole|grabbed} <his> {wallet|passport|bag} {downtown|there}",),
                ("the embassy {sent|brought} <him> home from <thing> {penniless|early}",),
            ),
        ),
    ),
}
"""The topics, by name."""
