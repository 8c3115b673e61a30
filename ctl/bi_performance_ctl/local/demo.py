import argparse


def add(parser: argparse.ArgumentParser) -> None: ...
