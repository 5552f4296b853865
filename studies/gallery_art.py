"""The artwork of the gallery world: packs emoji of two artists into atlases with their names, kinds and keywords.

    apt-get download fonts-noto-color-emoji && dpkg -x fonts-noto-color-emoji_*.deb art
    npm pack emoji-datasource@16.0.0 && tar xzf emoji-datasource-16.0.0.tgz -C art package/emoji.json
    npm pack emoji-datasource-twitter@16.0.0
    tar xzf emoji-datasource-twitter-16.0.0.tgz -C art package/img/twitter/64
    python studies/gallery_art.py art        # writes src/fewstep/assets/gallery

Needs fonttools beside the package. Every thing is cut to its outline and fills a cell of 64×64 by its longer side.
"""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.data.worlds.gallery_art import ATLASES, CELL, COLUMNS, FOLDER

# Kind: code points and plain names, of things that stay apart at twenty pixels. The names are Unicode's, shortened to
# what a person would type.
CHOSEN = {
    "animal": (
        "1f412 monkey, 1f98d gorilla, 1f415 dog, 1f429 poodle, 1f43a wolf, 1f98a fox, 1f99d raccoon, 1f408 cat, 1f981 "
        "lion, 1f405 tiger, 1f406 leopard, 1f40e horse, 1f993 zebra, 1f98c deer, 1f404 cow, 1f416 pig, 1f40f ram, "
        "1f411 sheep, 1f42a camel, 1f999 llama, 1f992 giraffe, 1f418 elephant, 1f98f rhino, 1f99b hippo, 1f401 mouse, "
        "1f407 rabbit, 1f994 hedgehog, 1f987 bat, 1f43b bear, 1f428 koala, 1f43c panda, 1f9a5 sloth, 1f998 kangaroo, "
        "1f438 frog, 1f40a crocodile, 1f422 turtle, 1f40d snake, 1f409 dragon"
    ),
    "bird": (
        "1f983 turkey, 1f413 rooster, 1f425 chick, 1f427 penguin, 1f985 eagle, 1f986 duck, 1f9a2 swan, 1f989 owl, "
        "1f9a9 flamingo, 1f99a peacock, 1f99c parrot"
    ),
    "sea animal": (
        "1f40b whale, 1f42c dolphin, 1f420 fish, 1f421 pufferfish, 1f988 shark, 1f419 octopus, 1f41a shell, 1f980 "
        "crab, 1f99e lobster, 1f990 shrimp, 1f991 squid"
    ),
    "bug": (
        "1f40c snail, 1f98b butterfly, 1f41b caterpillar, 1f41c ant, 1f41d bee, 1f41e ladybug, 1f997 cricket, "
        "1f577-fe0f spider, 1f982 scorpion"
    ),
    "plant": (
        "1f338 cherry blossom, 1f339 rose, 1f33a hibiscus, 1f33b sunflower, 1f337 tulip, 1f331 seedling, 1f332 fir "
        "tree, 1f333 oak tree, 1f334 palm tree, 1f335 cactus, 1f340 clover, 1f341 maple leaf, 1f344 mushroom, 1f490 "
        "bouquet, 1f33e rice plant"
    ),
    "fruit": (
        "1f347 bunch of grapes, 1f348 melon, 1f349 watermelon, 1f34a orange, 1f34b lemon, 1f34c banana, 1f34d "
        "pineapple, 1f96d mango, 1f34e apple, 1f350 pear, 1f351 peach, 1f352 pair of cherries, 1f353 strawberry, "
        "1f95d kiwi, 1f965 coconut"
    ),
    "vegetable": (
        "1f345 tomato, 1f951 avocado, 1f346 eggplant, 1f954 potato, 1f955 carrot, 1f33d corn cob, 1f336-fe0f chili "
        "pepper, 1f952 cucumber, 1f96c cabbage, 1f966 broccoli, 1f9c4 garlic, 1f9c5 onion"
    ),
    "meal": (
        "1f35e loaf of bread, 1f950 croissant, 1f956 baguette, 1f968 pretzel, 1f95e stack of pancakes, 1f9c0 piece of "
        "cheese, 1f969 steak, 1f357 chicken leg, 1f953 slice of bacon, 1f354 hamburger, 1f35f portion of fries, 1f355 "
        "pizza, 1f32d hot dog, 1f96a sandwich, 1f32e taco, 1f32f burrito, 1f373 fried egg, 1f957 salad, 1f37f box of "
        "popcorn, 1f35c bowl of noodles, 1f35d plate of spaghetti, 1f363 piece of sushi, 1f359 rice ball"
    ),
    "sweet": (
        "1f366 ice cream cone, 1f369 doughnut, 1f36a cookie, 1f382 birthday cake, 1f370 slice of cake, 1f9c1 cupcake, "
        "1f967 pie, 1f36b chocolate bar, 1f36c candy, 1f36d lollipop, 1f36e pudding, 1f36f honey pot"
    ),
    "drink": (
        "1f95b glass of milk, 2615 cup of coffee, 1fad6 teapot, 1f37e bottle of champagne, 1f377 glass of wine, 1f378 "
        "cocktail, 1f379 tropical drink, 1f37a mug of beer, 1f964 soda, 1f9cb bubble tea, 1f9c3 juice box"
    ),
    "vehicle": (
        "1f682 steam engine, 1f684 bullet train, 1f68c bus, 1f691 ambulance, 1f692 fire engine, 1f693 police car, "
        "1f695 taxi, 1f697 car, 1f69a truck, 1f69c tractor, 1f3ce-fe0f racing car, 1f3cd-fe0f motorcycle, 1f6f5 motor "
        "scooter, 1f6b2 bicycle, 26f5 sailboat, 1f6f6 canoe, 1f6a4 speedboat, 1f6a2 ship, 2708-fe0f airplane, 1f681 "
        "helicopter, 1f680 rocket, 1f6f8 flying saucer"
    ),
    "building": (
        "1f3e0 house, 1f3e2 office building, 1f3e5 hospital, 1f3ed factory, 1f3ef pagoda, 1f3f0 castle, 26ea church, "
        "1f54c mosque, 1f6d5 temple, 1f5fc tower, 26fa tent, 1f3aa circus tent, 1f6d6 hut, 1f3a1 ferris wheel"
    ),
    "instrument": (
        "1f3b7 saxophone, 1fa97 accordion, 1f3b8 guitar, 1f3b9 piano keyboard, 1f3ba trumpet, 1f3bb violin, 1fa95 "
        "banjo, 1f941 drum, 1f514 bell"
    ),
    "piece of clothing": (
        "1f453 pair of glasses, 1f454 shirt with a tie, 1f455 t-shirt, 1f456 pair of jeans, 1f9e3 scarf, 1f9e4 pair "
        "of gloves, 1f9e5 coat, 1f9e6 pair of socks, 1f457 dress, 1f458 kimono, 1f45c handbag, 1f392 backpack, 1f45f "
        "sneaker, 1f460 high heel, 1f97e hiking boot, 1f451 crown, 1f452 sun hat, 1f3a9 top hat, 1f9e2 cap, 1f48d "
        "ring"
    ),
    "tool": (
        "1f528 hammer, 1fa93 axe, 1fa9a saw, 1f527 wrench, 1fa9b screwdriver, 1f9f2 magnet, 2702-fe0f pair of "
        "scissors, 1f511 key, 1f512 lock, 1f9f0 toolbox, 1fa9c ladder, 2699-fe0f gear, 270f-fe0f pencil, 1f52c "
        "microscope, 1f52d telescope, 1f9f9 broom, 1faa3 bucket, 1f526 flashlight"
    ),
    "toy": (
        "26bd soccer ball, 26be baseball, 1f3c0 basketball, 1f3c8 football, 1f3b3 bowling pin set, 1f94a boxing "
        "glove, 26f8-fe0f ice skate, 1f6f7 sled, 1f3af dartboard, 1f3d3 ping-pong paddle, 1f388 balloon, 1fa81 kite, "
        "1fa80 yo-yo, 1f9f8 teddy bear, 1f3ae game controller, 1f3b2 die, 1f9e9 puzzle piece, 1fa86 nesting doll, "
        "1f6f9 skateboard"
    ),
    "household thing": (
        "1fa91 chair, 1f6cb-fe0f sofa, 1f6c1 bathtub, 1f6aa door, 1f56f-fe0f candle, 23f0 alarm clock, 231b "
        "hourglass, 1f4fa television, 1f4f7 camera, 260e-fe0f telephone, 1f4bb laptop, 1f4fb radio, 1f4d5 book, "
        "2602-fe0f umbrella, 1f4ee mailbox, 1f381 gift, 1f4a1 light bulb, 1f3c6 trophy"
    ),
}  # fmt: skip
HELD_OUT = {
    "animal": "1f9a8 skunk, 1f43f-fe0f chipmunk, 1f995 dinosaur",
    "bird": "1f54a-fe0f dove, 1f9a4 dodo",
    "sea animal": "1f9ad seal",
    "plant": "1fab7 lotus",
    "fruit": "1fad0 handful of blueberries",
    "vegetable": "1fad1 bell pepper",
    "meal": "1f9c7 waffle, 1f96f bagel",
    "sweet": "1f368 bowl of ice cream",
    "drink": "1f943 glass of whisky",
    "vehicle": "1f6fa rickshaw, 1f6f4 kick scooter",
    "building": "1f5fd statue of liberty, 1f3db-fe0f museum",
    "instrument": "1fa98 bongo",
    "piece of clothing": "1fa73 pair of shorts, 1f462 boot",
    "tool": "1fa9d hook, 1f5dd-fe0f old key",
    "toy": "1fa85 pinata",
    "household thing": "1f6bd toilet",
}
INK = 8  # alpha below which a pixel is not a part of the outline


def main(art: Path) -> None:
    known: dict[str, dict[str, Any]] = {
        entry["unified"].lower(): entry for entry in json.loads((art / "package/emoji.json").read_text())
    }
    things = [*list_things(CHOSEN, known), *list_things(HELD_OUT, known, held_out=True)]
    assert len({thing["name"] for thing in things}) == len(things)
    trained, held_out = ([thing for thing in things if bool(thing.get("held_out")) is held] for held in (False, True))
    font = next(art.rglob("NotoColorEmoji.ttf"))
    noto, twemoji = read_noto(font), art / "package/img/twitter/64"
    FOLDER.mkdir(parents=True, exist_ok=True)
    pack([cut(noto[strip(thing["code"])]) for thing in trained], "noto")
    pack([cut(Image.open(twemoji / f"{thing['code']}.png")) for thing in trained], "twemoji")
    pack([cut(noto[strip(thing["code"])]) for thing in held_out], "held-out")
    (FOLDER / "things.json").write_text("[\n" + ",\n".join(json.dumps(thing) for thing in things) + "\n]\n")
    print(len(trained), "things,", len(held_out), "held out;", {p.name: p.stat().st_size for p in FOLDER.iterdir()})


def list_things(
    chosen: dict[str, str], known: dict[str, dict[str, Any]], *, held_out: bool = False
) -> list[dict[str, Any]]:
    """What is known of each: its code point, plain name, kind, Unicode's own name and group, and keywords."""
    things = []
    for kind, listed in chosen.items():
        for code, name in (item.split(" ", 1) for item in listed.split(", ")):
            entry = known[code]
            keywords = sorted({word.replace("_", " ").replace("-", " ") for word in entry["short_names"]} - {name})
            thing = {"code": code, "name": name, "kind": kind, "unicode": entry["name"].lower()}
            thing |= {"group": entry["subcategory"], "keywords": keywords}
            things.append(thing | ({"held_out": True} if held_out else {}))
    return things


def strip(code: str) -> str:
    """The font has no glyphs of their own for variation selectors."""
    return code.removesuffix("-fe0f")


def read_noto(path: Path) -> dict[str, Image.Image]:
    """The font's 136×128 bitmaps of single code points."""
    from fontTools.ttLib import TTFont

    font = TTFont(path)
    bitmaps = font["CBDT"].strikeData[0]
    return {
        f"{code:x}": Image.open(io.BytesIO(bitmaps[name].imageData)).convert("RGBA")
        for code, name in font.getBestCmap().items()
        if name in bitmaps
    }


def cut(image: Image.Image) -> Image.Image:
    """Cuts to the outline, and scales it into the middle of a cell."""
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha >= INK)).getbbox())
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(image, ((CELL - image.width) // 2, (CELL - image.height) // 2))
    return cell


def pack(cells: list[Image.Image], name: str) -> None:
    """Writes cells row by row, in 24 bits without loss: what a picture shows must not hang on a decoder."""
    sheet = Image.new("RGBA", (COLUMNS * CELL, math.ceil(len(cells) / COLUMNS) * CELL))
    for i, cell in enumerate(cells):
        sheet.paste(cell, (i % COLUMNS * CELL, i // COLUMNS * CELL))
    sheet.save(ATLASES[name], lossless=True, quality=100, method=6, exact=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
