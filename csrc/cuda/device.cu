// The device itself, for the host, and what all launches share.
#include "device.h"

#include <atomic>

namespace gatedrnn {
namespace cuda {

std::atomic<int64_t> launches;

}  // namespace cuda

int64_t cuda_launches() { return cuda::launches.load(std::memory_order_relaxed); }

const char* cuda_error_text(int error) { return cudaGetErrorString(cudaError_t(error)); }

int use_cuda_device(int index, CudaDevice* device) {
  int current = -1, major = 0, minor = 0;
  int error = cudaGetDevice(&current);
  if (!error && current != index) error = cudaSetDevice(index);
  if (!error) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  if (!error) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  if (!error)
    error = cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, index);
  device->architecture = 10 * major + minor;
  return error;
}

}  // namespace gatedrnn
