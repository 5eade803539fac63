"""The vocabulary of the composed scenes: a few hundred things with a name of one or two words.

An entry is `name`, or `name=cldr_name` if the emoji has another CLDR name (as in the package
`emoji`); an underscore stands for a blank. People, flags, symbols, plurals and uncountable things
("a cheese") are left out on purpose. So is every name that is a kind of another one, because "Is
there a fish?" must have one true answer in a scene with a shark.
"""

from __future__ import annotations

import functools
import random

_GROUPS: dict[str, str] = {
    "animals": """
        dog=dog_face cat=cat_face mouse=mouse_face rabbit fox panda koala tiger=tiger_face lion
        cow=cow_face pig=pig_face frog monkey=monkey_face penguin duck eagle owl bat wolf boar horse
        unicorn bee=honeybee butterfly snail ladybird=lady_beetle ant spider scorpion turtle snake lizard
        octopus squid lobster crab dolphin whale=spouting_whale shark crocodile zebra gorilla elephant
        hippo=hippopotamus rhino=rhinoceros camel giraffe kangaroo goat deer rooster turkey peacock parrot
        swan flamingo skunk raccoon badger beaver otter sloth hedgehog dodo dragon dinosaur=sauropod
        hamster jellyfish seal donkey goose mosquito fly worm leopard mammoth llama squirrel=chipmunk""",
    "food": """
        apple=red_apple pear lemon banana watermelon peach strawberry kiwi=kiwi_fruit tomato coconut
        avocado eggplant potato carrot cucumber bell_pepper hot_pepper onion garlic mushroom pineapple
        mango tangerine olive croissant baguette=baguette_bread pretzel bagel waffle hamburger pizza
        hot_dog sandwich taco burrito egg salad=green_salad lollipop doughnut cookie birthday_cake cupcake
        pie chocolate_bar ice_cream=soft_ice_cream shrimp dumpling pea_pod teapot baby_bottle beer_mug
        wine_glass cocktail=cocktail_glass honey_pot""",
    "vehicles": """
        car=automobile bus fire_engine ambulance truck=delivery_truck tractor bicycle motorcycle
        scooter=kick_scooter skateboard roller_skate train tram helicopter airplane rocket sailboat canoe
        speedboat ship parachute satellite flying_saucer""",
    "objects": """
        umbrella key padlock=locked hammer axe saw=carpentry_saw screwdriver wrench gear magnet ladder
        bucket broom toothbrush sponge bed chair toilet bathtub door window mirror light_bulb candle
        flashlight lantern=red_paper_lantern book=closed_book newspaper envelope pencil pen paintbrush
        paperclip ruler=straight_ruler briefcase backpack handbag suitcase=luggage crown top_hat
        cap=billed_cap necktie shirt=t-shirt dress coat scarf running_shoe high_heel=high-heeled_shoe
        boot=hiking_boot ring gem=gem_stone trophy soccer_ball basketball baseball
        football=american_football yo-yo kite boomerang puzzle_piece teddy_bear balloon gift=wrapped_gift
        guitar violin trumpet saxophone drum accordion banjo flute bell microphone radio television camera
        laptop keyboard telephone printer battery joystick alarm_clock hourglass=hourglass_done watch
        thermometer compass telescope microscope stethoscope syringe pill test_tube bone tooth brain
        feather bomb knife=kitchen_knife bow=bow_and_arrow shield crystal_ball magic_wand shopping_cart
        map=world_map scroll lipstick fishing_pole ice_skate mailbox=closed_mailbox_with_raised_flag coin
        credit_card money_bag box=package basket abacus calendar spoon vase=amphora coffin
        fire_extinguisher toolbox robot snowman=snowman_without_snow ghost skull pumpkin=jack-o-lantern
        anchor wheel""",
    "nature": """
        tree=deciduous_tree cactus sunflower rose tulip hibiscus clover=four_leaf_clover maple_leaf
        seedling potted_plant moon=crescent_moon sun star cloud rainbow snowflake fire volcano
        mountain=snow-capped_mountain comet planet=ringed_planet wave=water_wave rock droplet
        shell=spiral_shell globe=globe_showing_Americas house castle church tent factory hospital fountain""",
}

_AN_EXCEPTIONS = {"hourglass": "an", "unicorn": "a"}


@functools.cache
def vocabulary() -> dict[str, str]:
    """Return the emoji character of each concept by name, in a fixed order.

    Raises:
        ModuleNotFoundError: the package `emoji` is missing (the message says how to install it).
    """
    try:
        import emoji
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "composed scenes need the package emoji: pip install 'pargo_ds[demo]'"
        ) from error
    characters = {}
    for character, facts in emoji.EMOJI_DATA.items():
        if facts["status"] == emoji.STATUS["fully_qualified"]:
            characters[facts["en"].strip(":")] = character
    found: dict[str, str] = {}
    for names in _grouped().values():
        found |= {name: characters[cldr] for name, cldr in names.items()}
    return found


@functools.cache
def _grouped() -> dict[str, dict[str, str]]:
    """Return the CLDR names of the concepts by group and name."""
    groups: dict[str, dict[str, str]] = {}
    for group, text in _GROUPS.items():
        entries = [entry.partition("=") for entry in text.split()]
        groups[group] = {name.replace("_", " "): cldr or name for name, _, cldr in entries}
    return groups


def chosen_concepts(seed: int, count: int | None = None) -> dict[str, list[str]]:
    """Return the sorted names of each group: all names, or about `count` names that the seed
    chooses, in proportion to the sizes of the groups.

    Raises ValueError for a count outside 10 ... the whole vocabulary.
    """
    groups = {group: sorted(names) for group, names in _grouped().items()}
    total = sum(map(len, groups.values()))
    if count is None:
        return groups
    if not 10 <= count <= total:
        raise ValueError(f"{count} concepts wanted; expected 10 to {total}")
    chosen = {}
    for group, names in groups.items():
        random.Random(f"{seed}/chosen concepts/{group}").shuffle(names)
        chosen[group] = sorted(names[: max(1, round(count * len(names) / total))])
    return chosen


def held_out_concepts(seed: int, share: float = 0.15, count: int | None = None) -> list[str]:
    """Return the sorted names that training never sees: a share of the chosen names of each group.
    The seed decides which.

    Raises ValueError unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise ValueError(
            f"the share of concepts held out is {share}; expected at least 0 and below 1, for example 0.15"
        )
    chosen: list[str] = []
    for group, names in chosen_concepts(seed, count).items():
        ordered = list(names)
        random.Random(f"{seed}/held-out concepts/{group}").shuffle(ordered)
        chosen += ordered[: round(share * len(ordered))]
    return sorted(chosen)


def with_article(noun: str) -> str:
    """Return the noun phrase with "a" or "an" before it:

    "small dog" -> "a small dog", "apple" -> "an apple".
    """
    usual = "an" if noun[0].lower() in "aeiou" else "a"
    article = _AN_EXCEPTIONS.get(noun.split()[0], usual)
    return f"{article} {noun}"
