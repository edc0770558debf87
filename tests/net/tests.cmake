fastserve_test(net SOURCES ${CMAKE_CURRENT_LIST_DIR}/bulk_lane_test.cc ${CMAKE_CURRENT_LIST_DIR}/lane_hub_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/tls_test.cc ${CMAKE_CURRENT_LIST_DIR}/tls_record_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/lane_streams_test.cc
  USES net LABELS sanitized threaded)
fastserve_test(net_tunnel SOURCES ${CMAKE_CURRENT_LIST_DIR}/tunnel_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/basp_guard_test.cc ${CMAKE_CURRENT_LIST_DIR}/gate_test.cc USES net
  LABELS sanitized threaded)
