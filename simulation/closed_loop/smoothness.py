"""Smoothness of a movement: the spectral arc length of its speed (SPARC).

Balasubramanian, Melendez-Calderon, Roby-Brami and Burdet, "On the analysis of movement smoothness", Journal of
NeuroEngineering and Rehabilitation 12:112 (2015); the arc length is that of the same group's IEEE Transactions on
Biomedical Engineering 59:2126 (2012)."""

from __future__ import annotations

import math

import numpy as np

CUTOFF = 10.0  # Hz, the highest frequency that counts; half of our 20 steps a second
LEAST = 0.05  # of the magnitude at 0 Hz: where the spectrum stays below, the arc ends
PADDING = 4  # the speed is padded with zeros to 2**4 times its length, so that the spectrum is a fine curve
STILL = 0.01  # m/s: a hand that is never faster does not move, and has no smoothness


def spectral_arc_length(speed: np.ndarray, frequency: float) -> float | None:
    """SPARC of a speed profile (T,) m/s with `frequency` values a second; None of one that never reaches STILL.

    Minus the arc length of the magnitude spectrum, both axes scaled to 1, so it has no unit and depends neither on the
    size of the movement nor on how long it takes: -1.4 is one smooth reach, every stop and tremor lowers it.
    """
    if not len(speed) or speed.max() < STILL:
        return None
    size = 2 ** (math.ceil(math.log2(len(speed))) + PADDING)
    spectrum = np.abs(np.fft.rfft(speed, size))[np.fft.rfftfreq(size, 1 / frequency) <= CUTOFF]
    spectrum /= spectrum[0]
    arc = spectrum[: np.flatnonzero(spectrum >= LEAST)[-1] + 1]
    return -float(np.hypot(1 / (len(arc) - 1), np.diff(arc)).sum())
