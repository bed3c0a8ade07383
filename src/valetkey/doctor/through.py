"""The layer of the gateway's way: the probe of each account, sent as a run's through the run's own socket."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from valetkey import serving
from valetkey.doctor.finding import ASK_SECONDS, Finding, Parts, looked
from valetkey.doctor.question import MOST_BYTES, Question, question_for, read
from valetkey.errors import GatewayFailed, NotForThisUse, ValetkeyError

if TYPE_CHECKING:
    from pathlib import Path

    from valetkey.credential import CredentialRef
    from valetkey.doctor.trial import Trial

__all__ = ["asked", "finding_of"]

LAYER = "through gateway"
# What the gateway answers where it is the rules that refuse (docs/gateway.md).
_BY_POLICY = frozenset(
    ("denied", "off_limits", "method_refused", "approval_denied", "approval_timed_out", "approvals_full")
)


def asked(parts: Parts, trial: Trial) -> Iterator[Finding]:
    """Ask by way of the gateway what was asked directly before; what that refused is not asked again."""
    if trial.policy is not None:
        policy = looked("policy", trial.policy_file, partial(_read_policy, trial.policy, trial.policy_file))
        yield policy
        if policy.error is not None:
            return
    questions: list[Question] = []
    for one in trial.accounts:
        if one.source != "stored":
            continue
        if trial.locked:
            yield Finding(layer=LAYER, subject=str(one.ref), skipped="the gateway's store is locked")
        elif one.ref not in trial.good:
            yield Finding(layer=LAYER, subject=str(one.ref), skipped="it does not work without the gateway either")
        else:
            found = _question(parts, one.ref)
            if isinstance(found, Finding):
                yield found
            else:
                questions.append(found)
    if not questions:
        return
    try:
        begun = trial.begin([question.ref for question in questions])
    except ValetkeyError as error:
        yield Finding(layer=LAYER, subject="the grants", error=error)
        return
    trial.asked = questions
    for question in questions:
        found = finding_of(LAYER, question, partial(_sent, question, begun.folder / serving.GATEWAY))
        if found.error is None:
            trial.answered.append(question)
        yield found


def _read_policy(text: str, file: str) -> str:
    from valetkey.gateway import policy as policies

    return f"{len(policies.read(text, file=file).rules)} rules"


def _question(parts: Parts, ref: CredentialRef) -> Question | Finding:
    from valetkey.gateway.grants import grantable

    try:
        grantable(ref, store=parts.store, catalogue=parts.catalogue, environ=parts.environ, use="run")
        record = parts.store.load(ref)
        question = None if record is None else question_for(parts.catalogue.get(ref.provider), record)
    except NotForThisUse as error:
        return Finding(layer=LAYER, subject=str(ref), skipped=error.message)
    except ValetkeyError as error:
        return Finding(layer=LAYER, subject=str(ref), error=error)
    if question is None:
        return Finding(layer=LAYER, subject=str(ref), skipped="its provider declares nothing that could be asked so")
    return question


def finding_of(layer: str, question: Question, send: Callable[[], bytes]) -> Finding:
    """Send a question, and say what came of it; what the rules refuse is a finding of the policy's."""
    subject = str(question.ref)
    try:
        answer = read(question, send())
    except ValetkeyError as error:
        return Finding(layer=layer, subject=subject, error=error)
    if answer.error is not None:
        return Finding(layer="policy" if answer.code in _BY_POLICY else layer, subject=subject, error=answer.error)
    return Finding(layer=layer, subject=subject, detail=f"answers (HTTP {answer.status})")


def _sent(question: Question, path: Path) -> bytes:
    received = b""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ASK_SECONDS)
            connection.connect(str(path))
            connection.sendall(question.as_bytes())
            while len(received) < MOST_BYTES and (piece := connection.recv(MOST_BYTES)):
                received += piece
    except TimeoutError:
        raise GatewayFailed(
            f"the gateway did not answer within {ASK_SECONDS:.0f} s",
            hint="where a rule lets a person decide, see `valetkey approvals list`; else see `run/serve.log`",
        ) from None
    except OSError as error:
        raise GatewayFailed(
            f"the run's socket {path} is not served: {(error.strerror or str(error)).lower()}",
            hint="start the gateway anew: `valetkey down --now && valetkey up`",
        ) from error
    return received
