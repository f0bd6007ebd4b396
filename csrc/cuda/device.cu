// The device itself, for the host, and what all launches share.
#include "device.h"

#include <atomic>
#include <mutex>

#include "launch.h"

namespace gatedrnn {
namespace cuda {

std::atomic<int64_t> launches;

namespace {

constexpr int kMostDevices = 64;

__global__ void cluster_probe_kernel(int* out) { *out = 0; }

// Asks how many clusters of blocks that fill a multiprocessor's shared memory run at once.
int ask_clusters(int index, Clusters* clusters) {
  int shared = 0;
  int error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  if (!error)
    error = cudaFuncSetAttribute(cluster_probe_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 shared);
  if (!error)
    error = cudaFuncSetAttribute(cluster_probe_kernel,
                                 cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error) return error;
  for (int k = 0; k < 4; ++k) {
    const unsigned size = 2u << k;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {size, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(size);
    config.blockDim = dim3(256);
    config.dynamicSmemBytes = size_t(shared);
    config.attrs = &attribute;
    config.numAttrs = 1;
    // A size that the device refuses: none fit.
    if (cudaOccupancyMaxActiveClusters(&clusters->fit[k], cluster_probe_kernel, &config)) {
      clusters->fit[k] = 0;
      cudaGetLastError();
    }
  }
  return 0;
}

// What the device said once, as long as it has as many multiprocessors.
int known_clusters(int index, int multiprocessors, Clusters* clusters) {
  struct Known {
    int multiprocessors;
    Clusters clusters;
  };
  static std::mutex mutex;
  static Known known[kMostDevices];
  if (index >= kMostDevices) return ask_clusters(index, clusters);
  const std::lock_guard lock(mutex);
  Known& of = known[index];
  if (of.multiprocessors != multiprocessors) {
    if (const int error = ask_clusters(index, &of.clusters)) return error;
    of.multiprocessors = multiprocessors;
  }
  *clusters = of.clusters;
  return 0;
}

}  // namespace

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
  device->clusters = {};
  if (error || major < 9) return error;
  return cuda::known_clusters(index, device->multiprocessors, &device->clusters);
}

}  // namespace gatedrnn
