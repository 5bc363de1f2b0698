"""Asks a gRPC server how it is; the proxy, if any, from the environment: HOST:PORT."""
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
