"""Embeddings of labelled tweets, for classical baselines: made by the encoder and stored in the form of mining's."""

from __future__ import annotations

from pathlib import Path

from scalemine.config import Config
from scalemine.engines import check_engine
from scalemine.executor import ShowProgress, StopSignals, make_executor, silent, threads_of_worker
from scalemine.mining.embeddings import encode_corpus, encoder_loader
from scalemine.models import device_name, encoder_settings
from scalemine.training.family import Data
from scalemine.training.multilabel.baseline_trainer import BaselineFamily, embedding_encoder, open_embeddings
from scalemine.training.multilabel.examples import Examples


def embed_examples(
    config: Config, *, signals: StopSignals, show: ShowProgress = silent, train_only: bool = False
) -> Data[Examples]:
    """Embed the labelled tweets that a configuration trains on and is tested on, but for those that are; return them.

    Args:
        config: The configuration.
        signals: A request to stop.
        show: Shows progress.
        train_only: Not those that it is tested on.

    Raises:
        InputError: The encoder or the data is wrong.
        Stopped: A signal asked for it; the shards that are finished are kept.
    """
    encoder = embedding_encoder(config)
    precision = encoder_settings(encoder)["encoder.precision"]
    check_engine(encoder.engine, precision=precision, device=device_name(encoder.device))
    data = BaselineFamily().read(config, signals=signals, show=show)
    tested = [] if train_only else [*([data.dev] if data.dev else []), *data.tests.values()]
    every = [data.train, *tested]
    apart = {examples.corpus.folder: examples for examples in every}.values()  # one file may be there twice
    todo = [examples for examples in apart if open_embeddings(config, examples).missing()]
    if not todo:
        return data
    wants_gpu = encoder.device != "cpu"
    with make_executor(config.compute, signals=signals, wants_gpu=wants_gpu) as executor:
        load = encoder_loader(encoder, precision=precision, threads=threads_of_worker(config.compute))
        for examples in todo:
            with show(f"embed {Path(examples.uri).stem}", examples.num_rows) as advance:
                embeddings = open_embeddings(config, examples)
                encode_corpus(load, examples.corpus, executor, embeddings=embeddings, on_rows=advance)
    return data
