from model_zoo.TF4CTR_GDCN.TF4CTR_GDCN import TF4CTR_GDCN

__all__ = ["TF4CTR_GDCN"]
