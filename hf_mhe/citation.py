"""The paper, as cards of models cite it."""

from __future__ import annotations

BIBTEX = """
@inproceedings{liu2018learning,
  title     = {Learning towards Minimum Hyperspherical Energy},
  author    = {Liu, Weiyang and Lin, Rongmei and Liu, Zhen and Liu, Lixin and Yu, Zhiding and Dai, Bo and Song, Le},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {31},
  year      = {2018},
  eprint    = {1805.09298},
  archivePrefix = {arXiv}
}
"""
