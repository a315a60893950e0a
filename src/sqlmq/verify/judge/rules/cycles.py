"""Cycles in a graph, which is a list of target nodes for each node."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence


def prune_sources(edges: Sequence[Sequence[int]]) -> list[int]:
    """Remove nodes without incoming edges until none is left to remove, and return the others: none without a cycle.

    Linear in nodes and edges, with little memory. The usual case, no cycle, costs no more than this.
    """
    incoming = [0] * len(edges)
    for targets in edges:
        for target in targets:
            incoming[target] += 1
    removed = [node for node, count in enumerate(incoming) if not count]
    for node in removed:
        for target in edges[node]:
            incoming[target] -= 1
            if not incoming[target]:
                removed.append(target)
    return [node for node, count in enumerate(incoming) if count]


def strongly_connected(edges: Sequence[Sequence[int]], nodes: Collection[int]) -> Iterator[list[int]]:
    """Yield the strongly connected components of *nodes* with more than one node. Tarjan's algorithm, without recursion."""
    among = set(nodes)
    index: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in nodes:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        index[root] = lowest[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in among:
                    continue
                if target not in index:
                    index[target] = lowest[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(edges[target])))
                    break
                if target in on_stack:
                    lowest[node] = min(lowest[node], index[target])
            else:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[node])
                if lowest[node] == index[node]:
                    component: list[int] = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                    if len(component) > 1:
                        yield component
