"""Colours as (red, green, blue) in 0..255, floats allowed."""

import colorsys

Colour = tuple[float, float, float]
WHITE: Colour = (255, 255, 255)


def times(colour: Colour, factor: float) -> Colour:
    """Darker below 1, lighter above."""
    red, green, blue = (min(255.0, channel * factor) for channel in colour)
    return red, green, blue


def mix(a: Colour, b: Colour, share_of_b: float) -> Colour:
    red, green, blue = (x * (1 - share_of_b) + y * share_of_b for x, y in zip(a, b))
    return red, green, blue


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """All three in 0..1."""
    red, green, blue = (255 * channel for channel in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue
