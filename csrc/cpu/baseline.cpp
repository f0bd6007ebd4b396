// What every machine has: SSE2 on x86-64, NEON (with twice the registers) on Arm.
#define GATEDRNN_NAMESPACE baseline
#define GATEDRNN_VECTOR_BYTES 16
#ifdef __aarch64__
#define GATEDRNN_VECTOR_REGISTERS 32
#else
#define GATEDRNN_VECTOR_REGISTERS 16
#endif
#include "body.h"
