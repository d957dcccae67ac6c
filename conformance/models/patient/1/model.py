"""Takes as long as the request says; fails for a negative time."""

import threading

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            seconds = pb_utils.get_input_tensor_by_name(request, "SECONDS").as_numpy()
            if seconds[0] < 0:
                error = pb_utils.TritonError("time does not run backwards")
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            threading.Event().wait(float(seconds[0]))
            responses.append(
                pb_utils.InferenceResponse([pb_utils.Tensor("SECONDS_WAITED", seconds)])
            )
        return responses
