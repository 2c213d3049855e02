# find_package(Kaoken): kaoken_add_model() of an installed Kaoken, for a project that has it in its build requirements.

include("${CMAKE_CURRENT_LIST_DIR}/Kaoken.cmake")
