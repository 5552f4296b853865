from PIL import Image

from fewstep.evaluate.grid import labelled_grid


def test_pictures_stand_in_rows_under_their_headings():
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    sheet = labelled_grid(
        [("first", [red, blue]), ("second", [blue, red])], ["a long heading that wraps", "b"], cell=40
    )
    colours = [[sheet.getpixel((150 + 46 * c + 20, sheet.height - 46 * (2 - r) + 20)) for c in (0, 1)] for r in (0, 1)]
    assert colours == [[(255, 0, 0), (0, 0, 255)], [(0, 0, 255), (255, 0, 0)]]
