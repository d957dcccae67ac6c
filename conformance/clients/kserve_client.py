"""Run by KServe's own interpreter: ``kserve_client.py CLIENT ADDRESS FEATURE``."""

import asyncio
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

A = np.array([[1, 2, 3, 4]], dtype=np.float32)
B = np.array([[10, 20, 30, 40]], dtype=np.float32)


def request(binary: bool) -> InferRequest:
    inputs = []
    for name, array in (("INPUT0", A), ("INPUT1", B)):
        tensor = InferInput(name, list(array.shape), "FP32")
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return InferRequest(model_name="add_sub", infer_inputs=inputs, request_id="k1")


async def rest(address: str, feature: str) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=1))
    base = f"http://{address}"
    if feature == "server live, ready":
        assert await client.is_server_live(base)
        assert await client.is_server_ready(base)
    elif feature == "model ready":
        assert await client.is_model_ready(base, "add_sub")
    else:
        for binary in (False, True):
            answer = await client.infer(base, request(binary), model_name="add_sub")
            assert answer.outputs[0].as_numpy().tolist() == (A + B).tolist(), answer
    await client.close()


async def grpc(address: str, feature: str) -> None:
    client = InferenceGRPCClient(address, retries=2)
    if feature == "server live, ready":
        assert await client.is_server_live()
        assert await client.is_server_ready()
    elif feature == "model ready":
        assert await client.is_model_ready("add_sub")
    else:
        for binary in (False, True):
            answer = await client.infer(request(binary))
            assert answer.outputs[0].as_numpy().tolist() == (A + B).tolist(), answer
    await client.close()


if __name__ == "__main__":
    asyncio.run({"rest": rest, "grpc": grpc}[sys.argv[1]](*sys.argv[2:]))
