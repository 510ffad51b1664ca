"""What the predictions of a run on a stream would have cost in the field, where a fleet is modelled."""

from __future__ import annotations

import numpy as np

from fedsim.fleet.prediction import Asked, prediction_costs
from fedsim.fleet.work import count_prediction
from fedsim.models.build import made_up_batch
from fedsim.parts import Parts


def prediction_of(parts: Parts) -> dict[str, dict[str, float]] | None:
    """See `fedsim.fleet.prediction.prediction_costs`; None without streams, without a fleet, and where nothing came."""
    server = parts.server
    online, field, rounds = server.online, server.field, server.state.round
    if online is None or not field.modelled:
        return None
    stream, clients = online.population.stream, np.arange(server.num_clients)
    examples = stream.counts(rounds)
    if not examples.any():
        return None
    x, _ = made_up_batch(online.population.dataset, 6)
    seconds = [row["simulated_seconds"] for row in server.state.rows]
    asked = Asked(
        examples.astype(np.float64),
        sum((online.population.arrived(round) > 0 for round in range(1, rounds + 1)), np.zeros(len(clients))),
        online.fetched.astype(np.float64),
        count_prediction(parts.model, x),
        field.load.bytes_down,
        float(online.population.dataset.one_row[0].nbytes),
        float(np.mean(seconds)),
    )
    return prediction_costs(asked, field.fleet.hardware(clients, field.seed))
