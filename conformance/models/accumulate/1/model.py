"""The running sum of a sequence, kept in the one instance that the sequence meets."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            start = pb_utils.get_input_tensor_by_name(request, "START").as_numpy()
            sequence = pb_utils.get_input_tensor_by_name(request, "CORRID").as_numpy().item()
            before = 0 if start.any() else self.sums[sequence]
            self.sums[sequence] = before + value
            answer = pb_utils.Tensor("OUT", self.sums[sequence])
            responses.append(pb_utils.InferenceResponse([answer]))
        return responses
