// The direct calls of an Io on the real kernel, shared by UringIo and EpollIo.
#pragma once

#include "proxy/io.h"
#include "proxy/time_wait.h"

namespace portway {

class KernelIo : public Io {
 public:
  Nanos now() const override;

  int accept(int listener) override;
  int socket(int family, const NetworkNamespace::Ptr& netns) override;
  void set_stays_in_namespaces(bool stays) override;
  int connect(int fd, const Endpoint& to) override;
  int connect(int fd, const SocketTarget& to) override;
  int socket_error(int fd) override;
  std::unique_ptr<PortProbe> probe(const SynProbeTarget& target, int& error) override;
  int set_option(int fd, int level, int option, int value) override;
  int bind_to_device(int fd, int device) override;
  int bind_transparent(int fd, const Endpoint& source) override;
  int take_client(int fd, Client& out) override;
  int local_endpoint(int fd, Endpoint& out) override;
  int remote_endpoint(int fd, Endpoint& out) override;
  std::vector<PortRange> local_ports() override;
  int listen_again(int fd) override;
  int unacknowledged(int fd) override;
  int unread(int fd) override;
  TcpSummary tcp_summary(int fd) override;
  void find_urgent(std::span<pollfd> sockets) override;
  bool at_urgent_mark(int fd) override;

  std::ptrdiff_t recv(int fd, void* buffer, std::size_t size, int flags) override;
  std::ptrdiff_t send(int fd, const void* data, std::size_t size, int flags) override;
  std::ptrdiff_t splice(int from, int to, std::size_t size) override;
  std::ptrdiff_t write(int fd, const void* data, std::size_t size) override;

  int pipe(int (&fds)[2], std::size_t size) override;
  int shutdown(int fd, int how) override;
  void close(int fd) override;
  int set_reset_at_end(int fd, bool reset) override;
  void close_with_reset(int fd) override;
  void close_time_wait(int fd, const Endpoint& remote, int device,
                       const NetworkNamespace::Ptr& netns) override;

 private:
  TimeWaitEnder time_waits_;
  bool stays_ = false;
  NamespaceStay stay_;
};

}  // namespace portway
