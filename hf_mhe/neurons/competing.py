"""Which groups have rows that do not compete, so that two alike do not make one of them superfluous.

Note [Rows that compete]. Rows compete where all are read against the same input, so that of two alike the layer needs
one: the next layer adds up what it made of both. So do the entries of a set from which one is chosen or all are asked
(words, codes, classes, object queries, registers). A group whose rows are neither is measured like any other, and kept
apart, because its alike rows say nothing of redundancy. It was asked of every group of every model type of
transformers:
1. depthwise kernels, of whatever class (also in Mamba's mixer and in Conformers): each sees a channel of its own. Two
   that are alike smooth two channels in one way, and neither can go. With a channel multiplier m the m kernels of a
   channel do compete; the group stays one, and apart, as most of its pairs, all but (m - 1) of (n - 1), are of
   different channels. Rejected: a group for each channel, hundreds of groups of two rows. Filters of a grouped
   convolution compete within their group, which is a neuron group of its own.
2. tables with a row for each place: positions, absolute or relative (also tables of biases, a row for each offset),
   rows and columns of an image, distances, time steps. The input says which row is taken, neighbours are alike because
   places are near, and the table has to have as many rows as there are places.
3. tables with a row for each type of input: segments, token types, modalities, levels of a pyramid. Again the input
   says which, and their number is given.
Everything else competes, and whatever is not known: the rows of routers, class vectors and gates, LSTM gates, experts
and heads (groups of their own), tables of words, speakers and languages, which are learned entries as words are.
Object queries are called positions in some detectors (`query_position_embeddings`), and are none. A gate with one
output, one vector, factors on a diagonal (LayerScale) and the rates of state spaces are no groups at all.
Where several modules share a matrix, its rows compete as soon as they do in one of them. In a checkpoint of unknown
class a weight (n, 1, 3, 3) may as well be the first layer of a model of grey images, so all of its groups compete.
Rejected: to ask the numbers (neighbours alike, small dimension), which would hide what is to be found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Apart = Literal["different inputs", "positions", "types"]
"""Why the rows of a group do not compete."""

# A table's name is the only thing that tells places from words.
_ENTRIES = re.compile(
    r"(^|_)(quer(y|ies)|latents?|words?|vocab|tokens?(_emb\w*)?)$|(^|_)(quer(y|ies)_|pos_tags?(_|$))"
)
_TYPES = re.compile(r"(^|_)(types?|seg|segments?|modality|modalities|levels?)(_|\d|$)")
_PLACES = re.compile(
    r"(^|_)(pos|positions?|positional|ape|w?pe|rel|relative|dist|distances?|rows?|cols?|columns?|heights?|widths?"
    r"|time|timesteps?)(_|\d|$)"
    r"|pos(ition|itional)?_?(emb|enc)"
)
_HOLDS_PLACES = re.compile(r"(^|_)(pos|positions?|positional)(_|$)|relative_(\w+_)?bias")
_CLASS_OF_PLACES = re.compile(r"Position(al)?(Embed|Encod)")


def why_apart(kind: str, path: str, class_name: str) -> Apart | None:
    """Why the rows of a piece do not compete, None where they do; see Note [Rows that compete].

    Args:
        kind: of the piece.
        path: dotted, of the table: a module that is one, or a parameter that a module holds.
        class_name: of the module.
    """
    if kind == "depthwise":
        return "different inputs"
    if kind not in ("embedding", "position", "token"):
        return None
    # `seg_embed.1` is an entry of a list; what `positional_embedding.embedding` is, its holder's name says.
    names = [part.lower() for part in path.split(".") if not part.isdigit() and part != "weight"]
    own, holder = [*reversed(names), "", ""][:2]
    if _TYPES.search(own):
        return "types"
    if kind == "token" or _ENTRIES.search(own):
        return None
    of_places = kind == "position" or _PLACES.search(own) or _HOLDS_PLACES.search(holder)
    return "positions" if of_places or _CLASS_OF_PLACES.search(class_name) else None


def apart_in_all(reasons: Iterable[Apart | None]) -> Apart | None:
    """The reason for a matrix that several modules use: None where its rows compete in one of them."""
    found = list(reasons)
    return None if None in found else found[0]
