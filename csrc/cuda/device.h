// The machine as the binding sees it. device.cu asks CUDA; tests put models of it in its place.
#pragma once

namespace stal::cuda {

// DLDeviceType of the tensors that Forward takes.
int DeviceType();

// Versions of CUDA, 1000 * major + 10 * minor: of the driver, 0 without one, and of the toolkit that
// built this library.
int DriverVersion();
int ToolkitVersion();

// 10 * major + minor; 0 where there is no such device.
int Capability(int device);

int Multiprocessors(int device);

// Makes a device the current one of this thread, and at its end the one that was.
class CurrentDevice {
 public:
  // Throws std::runtime_error.
  explicit CurrentDevice(int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_;
  int device_;
};

}  // namespace stal::cuda
