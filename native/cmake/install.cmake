# What 'cmake --install' brings: header, library, kvmerge.pc and kvmergeConfig.cmake. The folder can be moved.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/kvmerge)

target_include_directories(kvmerge INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
install(TARGETS kvmerge EXPORT kvmergeTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT kvmergeTargets NAMESPACE kvmerge:: DESTINATION ${package})

configure_file(cmake/kvmergeConfig.cmake.in kvmergeConfig.cmake @ONLY)
# Before 1.0, a minor version may break what is promised (UPGRADING.md).
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/kvmergeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/kvmergeConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/kvmergeConfigVersion.cmake
    DESTINATION ${package})

file(RELATIVE_PATH KVMERGE_PC_PREFIX "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
string(REGEX REPLACE "/$" "" KVMERGE_PC_PREFIX "${KVMERGE_PC_PREFIX}")
configure_file(cmake/kvmerge.pc.in kvmerge.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/kvmerge.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES ../LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/kvmerge)
