"""Adds up what each sequence sends."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        responses = []
        for request in requests:

            def value(name, request=request):
                return pb_utils.get_input_tensor_by_name(request, name).as_numpy().flat[0]

            sequence = int(value("CORRID"))
            if value("START"):
                self.totals[sequence] = 0
            if value("READY"):
                self.totals[sequence] += int(value("INPUT"))
            total = np.array([[self.totals[sequence]]], np.int32)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", total)]))
        return responses
