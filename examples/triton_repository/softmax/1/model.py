"""Turns scores into probabilities."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            scores = pb_utils.get_input_tensor_by_name(request, "SCORES").as_numpy()
            if not np.isfinite(scores).all():
                error = pb_utils.TritonError("scores must be finite")
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
            shares = powers / powers.sum(axis=-1, keepdims=True)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("PROBABILITIES", shares)]))
        return responses
