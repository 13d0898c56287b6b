"""Training: stochastic variational inference on any Pyro model and guide, a record an epoch.

The order of the data in epoch e depends on the seed and on e alone, and the random numbers of a step (binarization, ε) on the
seed, e and the step, so that a run is reproducible bit for bit on a CPU, goes on from a checkpoint as if it had never been cut,
and leaves the global random state as it was.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.data import Splits, columns_of
from pyro_vae.evaluate.bound import DivergedError, Totals, bound_over, names_of
from pyro_vae.kinds import check_names, takes
from pyro_vae.precision import has_products
from pyro_vae.scopes import had_moved_nothing, mode, reseed, seeded, telling_memory, unmoved
from pyro_vae.together import Together
from pyro_vae.traces import Programs, library_path, parameters
from pyro_vae.training.checkpoint import Every
from pyro_vae.training.checks import check_can_share, check_support
from pyro_vae.training.compiled_step import make_step
from pyro_vae.training.kept import Kept, check_average
from pyro_vae.training.optimizers import make_optimizer
from pyro_vae.training.plan import Keep, TrainingPlan
from pyro_vae.training.records import Epoch, Progress
from pyro_vae.training.saving import Saving, identity_of
from pyro_vae.training.schedules import MovingSchedule
from pyro_vae.training.step import Step, Update
from pyro_vae.training.watch import Watched, check_kl, check_watch

logger = logging.getLogger("pyro_vae")


@takes
def fit(
    programs: Programs,
    data: Splits,
    plan: TrainingPlan | None = None,
    *,
    on_step: Callable[[Progress], None] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: str = "minute",
    watch: Sequence[str] = (),
    **options: Any,
) -> Training:
    """Trains a model and a guide by stochastic variational inference and yields a record after each epoch.

    Arguments and data are checked at once; training goes on as long as records are asked for
    (``for epoch in fit(vae, data, epochs=10): print(epoch)``). Pyro's global parameter store is left alone; a bare
    ``pyro.param`` of the programs is trained where it lives, in that store.

    Args:
        programs: a `VAE`, or anything with a Pyro ``model`` and ``guide`` (see `pyro_vae.traces.Programs`).
        data: train and validation data, on the device of the programs.
        plan: how it is trained.
        on_step: told where training stands, about ten times a second. What it raises ends the training; a KeyboardInterrupt is
            taken for a wish to stop, before which a checkpoint is written.
        checkpoint: a file from which the training goes on if it is there, as if it had never been cut (on a CPU bit for bit),
            and which it writes now and then. The records that follow are those after the checkpoint.
        checkpoint_every: how often: "10 minutes", "500 steps", "epoch".
        watch: what else each record has, in its ``watched``, such as ["gradient_norm"] (see `pyro_vae.training.watch`). It
            changes no weight.
        **options: fields of `TrainingPlan` by name, in place of the plan's.

    Returns:
        An iterator over records (`Epoch`); with each, the weights of that epoch are in place, and at its end those that the
        plan keeps.

    Raises:
        TypeError: an option is no field of `TrainingPlan`.
        ValueError: an option is out of its range, a name in ``watch`` is wrong, data are outside the likelihood's support, the
            programs have no parameters or are outside the estimator's domain, or the checkpoint is damaged or that of another
            training.
        DivergedError: the bound became NaN or infinite; the last good weights are put back first.
    """
    check_names(options, signature(TrainingPlan), "fit")
    training = Training(programs, data, replace(plan or TrainingPlan(), **options), on_step, watch)
    if checkpoint is not None:
        training.keep(Path(checkpoint), Every(checkpoint_every))
    return training


class Training(Iterator[Epoch]):
    """One training: an iterator over the records of its epochs (see `fit`, which makes it).

    Attributes:
        estimator: the run's own copy of the plan's estimator, with its state.
    """

    def __init__(
        self,
        programs: Programs,
        data: Splits,
        plan: TrainingPlan,
        on_step: Callable[[Progress], None] | None,
        watch: Sequence[str] = (),
    ) -> None:
        check_watch(watch)
        self.programs, self.plan, self.on_step, self.watch = programs, plan, on_step, tuple(watch)
        self.train, self.valid = columns_of(programs, data.train), columns_of(programs, data.valid)
        self.device, self.steps = self.train.x.device, plan.steps(len(self.train))
        self.estimator = deepcopy(plan.estimator)  # it may keep a state, and a run has its own
        self.estimator.to(self.device)
        if not has_products(plan.precision, self.device):
            logger.warning(
                "precision: this processor has no bfloat16 products, which makes bf16 far slower than fp32 here"
            )
        self.together = Together.now()
        """The processes that train together, if `torch.distributed` connects several."""
        if self.together:
            check_can_share(programs, plan, self.together.size)
        with seeded(self.device, plan.seed, "setup"), unmoved(programs), self._memory():
            check_support(programs, data)
            w, phi = self._prepared()
        if plan.e_steps and not (w and phi):
            side = "guide" if w else "model"
            raise ValueError(
                f"e_steps and m_steps: the {side} uses no parameters, so that steps on it alone move nothing"
            )
        self.phases = {"both": [*w, *phi], "E": phi, "M": w}
        self._placed = self._places()
        self.optimizer = make_optimizer(plan.optimizer, w, phi, plan.lr_phi)
        steps = plan.epochs * self.steps
        self.schedule = MovingSchedule(plan.schedule, self.optimizer, plan.schedule_by, plan.epochs, steps)
        for group in self.optimizer.param_groups:
            if (
                group["name"] == "phi"
                and plan.lr_phi is not None
                and group.get("initial_lr", plan.lr_phi) != plan.lr_phi
            ):
                name = type(self.schedule.scheduler).__name__
                raise ValueError(
                    f"lr_phi: {name} sets rates of its own: give it a list of two, for w and for φ, in its place"
                )
        check_average(plan, programs)
        buffers = list(programs.buffers()) if isinstance(programs, nn.Module) else []
        self.kept = Kept(plan, self.phases["both"], buffers, steps)
        self.ends_with: Keep = "last"
        """Which weights are in place: those of the last epoch while it goes on, and at the end what the plan keeps."""
        self.done: int = 0
        """The number of whole epochs that were trained."""
        self._within: dict[str, Any] | None = None
        self._saving: Saving | None = None
        self._records = self._run()

    def keep(self, file: Path, every: Every) -> None:
        """Goes on from a checkpoint if there is one, and writes one now and then.

        Raises:
            ValueError: the checkpoint is damaged, or that of another training.
        """
        self._saving = Saving(file, every, self)
        if file.is_file():
            self.done, self._within = self._saving.restore()

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train: all epochs are done, or the patience is at its end."""
        return self.done >= self.plan.epochs or self.kept.is_over(self.done)

    def save(self) -> None:
        """Writes a checkpoint now, between two epochs, where checkpoints are kept."""
        if self._saving:
            self._saving.write(self.done, None)

    @property
    def step_of_epoch(self) -> int:
        """How many steps of the next epoch were taken before the checkpoint that this training goes on from."""
        return int(self._within["steps"]) if self._within else 0

    def _prepared(self) -> tuple[list[Tensor], list[Tensor]]:
        """Runs the programs once as training will, and returns their parameters w and φ.

        Raises:
            ValueError: the programs are outside the estimator's domain, or cannot be trained on batches of this size.
        """
        plan, programs = self.plan, self.programs
        batch = self.train.take(slice(0, plan.batch_size))
        # Batch normalization takes a single datum if there are several particles, and this run has one.
        several = [torch.cat([each, each]) for each in batch] if plan.batch_size == 1 else batch
        try:
            with mode(programs, training=True):
                w, phi = (list(side.values()) for side in parameters(programs.model, programs.guide, *several))
                with torch.no_grad(), library_path():
                    weight = plan.objective.weight(1)
                    estimate = self.estimator.estimate(
                        programs.model, programs.guide, *batch, objective=plan.objective, kl_weight=weight
                    )
                    plan.objective.check_means(estimate.optimized)
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                if plan.batch_size > 1:
                    raise ValueError(
                        "batch normalization is trained on the batch that a network is given, and one is given a single input, "
                        "as an encoder is by VampPrior(components=1): give it at least 2, or use another normalization"
                    ) from error
                raise ValueError(
                    f"batch_size: batch normalization needs batches of at least 2 data to be trained, got {plan.batch_size}"
                ) from error
            raise
        self.names = names_of(estimate)
        check_kl(self, list(estimate.particles.guide))
        return w, phi

    def _places(self) -> set[int]:
        """The identities of the trained parameters that are in the programs' module."""
        own = self.programs.parameters() if isinstance(self.programs, nn.Module) else []
        return {id(leaf) for leaf in self.phases["both"]} & {id(parameter) for parameter in own}

    def _check_places(self) -> None:
        """Raises ValueError if other parameters stand where those stood that the optimizer moves."""
        if self._places() != self._placed:
            raise ValueError(
                "a parameter was replaced by another one after training began, and the optimizer moves the old one: write "
                "values in place (load_state_dict without assign), or begin a new training"
            )

    def _memory(self) -> AbstractContextManager[None]:
        """Tells what to lower where memory runs out."""
        return telling_memory(batch_size=self.plan.batch_size, K=self.estimator.drawn)

    def __next__(self) -> Epoch:
        """Trains for an epoch and returns its record."""
        return next(self._records)

    def _run(self) -> Iterator[Epoch]:
        if self.together:
            told = "the processes of this training do not have the same data and options"
            self.together.check_same(self._saving.identity if self._saving else identity_of(self), told)
            told = "the processes of this training do not see the same checkpoint: its folder must be one that all of them see"
            self.together.check_same([self.done, self.step_of_epoch], told)
            self.together.from_first(self.phases["both"])
        plan = self.plan
        update = Update(
            self.programs,
            self.estimator,
            plan.objective,
            self.train,
            self.optimizer,
            self.phases,
            clip_norm=plan.clip_norm,
            precision=plan.precision,
            norms="gradient_norm" in self.watch,
            together=self.together,
        )
        step = make_step(update, plan.compile, plan.epochs * self.steps, plan.batch_size)
        if self._saving:
            self._saving.begin(step)
        state = [*self.phases["both"], *self.kept.buffers]
        for epoch in range(self.done + 1, plan.epochs + 1):
            if self.kept.is_over(epoch - 1):
                break
            self._check_places()
            with self._memory():
                good = [tensor.detach().clone() for tensor in state]
            try:
                with self._memory():
                    record = self._epoch(epoch, step)
            except DivergedError:
                with torch.no_grad():
                    for tensor, kept in zip(state, good, strict=True):
                        tensor.copy_(kept)
                raise
            self.kept.after_epoch(epoch, record.valid.bound)
            for callback in plan.callbacks:
                callback.on_epoch(record, self.programs)
            self.done = epoch
            yield record
            # Whoever was given the record has kept it by now: a checkpoint that came before could be all that is left of it.
            if self._saving:
                self._saving.after_epoch(epoch, last=epoch == plan.epochs or self.kept.is_over(epoch))
        self.ends_with = self.kept.put()

    def _epoch(self, epoch: int, step: Step) -> Epoch:
        """Takes the steps of one epoch, and evaluates on the validation data."""
        plan, before, within = self.plan, (epoch - 1) * self.steps, self._within or {}
        start, told, self._within = time.perf_counter() - within.get("seconds", 0.0), 0.0, None
        lr = within.get("lr", float(self.optimizer.param_groups[0]["lr"]))
        totals, kl_weight = Totals(self.names, self.estimator), plan.objective.weight(epoch)
        if within:
            totals.restore(within["totals"])
        watched = Watched(self, within.get("watched"))

        def state(number: int) -> dict[str, Any]:
            seconds = time.perf_counter() - start
            kept = {"totals": totals.state(), "watched": watched.state()}
            return {"steps": number - before, "seconds": seconds, "lr": lr, **kept}

        with seeded(self.device, plan.seed, "epoch", epoch), library_path(), mode(self.programs, training=True):
            undisturbed, skipped = False, within.get("steps", 0)
            batches = plan.batches(self.train.order())[skipped:]
            for number, index in enumerate(batches, start=before + skipped + 1):
                reseed(self.device, plan.seed, "epoch", epoch, "step", number - before)
                try:
                    found = step(index, kl_weight, phase := plan.phase(number - 1), undisturbed)
                except KeyboardInterrupt as stop:
                    if self._saving and had_moved_nothing(stop):
                        self._saving.write(epoch - 1, state(number - 1) if totals.count else None)
                    raise
                totals.add(found)
                watched.step(found, phase)
                self.schedule.after_step()
                self.kept.after_step(number)
                undisturbed = not self.schedule.by_step
                if self._saving and self._saving.is_due(number):
                    totals.check(f"in epoch {epoch}")  # no checkpoint of weights that have diverged
                    self._saving.write(epoch - 1, state(number))
                if self.on_step and (now := time.perf_counter()) - told > 0.1:
                    told, undisturbed = now, False
                    totals.check(f"in epoch {epoch}")
                    try:
                        self.on_step(Progress(epoch, number, plan.epochs * self.steps, totals.terms().bound))
                    except KeyboardInterrupt:
                        if self._saving:
                            self._saving.write(epoch - 1, state(number))
                        raise
        totals.check(f"in epoch {epoch}")
        stepped = time.perf_counter() - start
        valid = bound_over(self.programs, self.valid, self.estimator, plan.batch_size, plan.seed, self.together)
        valid.check(f"on the validation data after epoch {epoch}")
        more = watched.values(stepped)
        self.schedule.after_epoch(valid.terms())
        return Epoch(epoch, totals.terms(), valid.terms(), lr, time.perf_counter() - start, more)
